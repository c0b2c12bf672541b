"""A package at work: measured on labelled images, and sent over folders and buckets of new ones."""
