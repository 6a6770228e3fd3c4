"""What an operator types; talks to a running driver through the client that it is given."""
