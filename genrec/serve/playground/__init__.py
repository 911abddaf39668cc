"""The playground at `/`: a page on the server's own routes, whole without the internet."""
