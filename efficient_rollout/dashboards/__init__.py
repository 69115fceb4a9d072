"""What a run did, as pictures: drawn from the files in its directory, after it or while it goes on."""
