"""Models as files: what their files hold, whether they can be read, opening them, writing them."""
