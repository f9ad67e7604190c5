"""What the planes agree on: a spec goes out, an append-only event stream comes back."""
