"""What the cluster tests put on the stage: an application, and callers that write down what they see."""
