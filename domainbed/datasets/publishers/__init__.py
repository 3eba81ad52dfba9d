"""What the publishers of photographs offer, and how it becomes the folder that the reader expects."""
