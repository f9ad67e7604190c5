"""The people's side: a client over HTTP and a command line. Nothing here knows how the service works inside."""
