"""Text in the cells of paper forms: a line recogniser, and the forms that it is measured on."""
