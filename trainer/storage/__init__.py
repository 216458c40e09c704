"""Files of a bucket, on this machine or in Google Cloud Storage, behind one interface."""
