"""The webhook: it puts a sidecar beside annotated pods as they are created. A process of its own."""
