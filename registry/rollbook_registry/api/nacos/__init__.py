"""The door for Nacos' clients on the gRPC port: open, and saying that their protocol is not spoken yet."""
