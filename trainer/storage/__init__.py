"""Read and write the files of a bucket, on this machine or in Google Cloud Storage, by one interface."""
