"""The experiments of "Serving DNNs like Clockwork" (Gujarati et al., OSDI 2020), repeated; see README.md."""
