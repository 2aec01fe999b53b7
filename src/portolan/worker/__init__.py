"""Workers: the processes that runtimes live in, and how the controller talks to them."""
