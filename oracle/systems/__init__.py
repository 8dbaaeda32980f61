"""The systems whose runners rule books describe."""
