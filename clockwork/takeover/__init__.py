"""The takeover protocol: which controller is active, and who obeys it. No sockets, threads or clocks."""
