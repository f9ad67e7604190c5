"""What a row means: from bytes to rows, from rows to conversations, from conversations to tokens and a loss mask."""
