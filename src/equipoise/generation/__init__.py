"""Writing responses: generators behind one protocol, and the batch command over them."""
