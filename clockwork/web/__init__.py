"""Parts that servers for web clients share: seats for connections, and checks against foreign web pages.
Pure."""
