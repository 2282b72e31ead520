"""The commands of `cm3`, one file per part of the product. Nothing heavy is imported before a command runs."""
