"""Files from anywhere on the public network: resumed, checked, and never from where we should not reach."""
