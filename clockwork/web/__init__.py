"""What servers for web clients share: seats for connections, and the requests that a web page may make. Pure."""
