"""Documents: what enters and leaves cm3. Records, image decoding, readers and writers of the formats people have."""
