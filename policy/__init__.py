"""What every stack must keep to."""
