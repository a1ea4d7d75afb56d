"""What is answered about the state of a controller; asking changes nothing."""
