"""The server: recommendations over HTTP, batched, limited, measured, its catalogue replaceable."""
