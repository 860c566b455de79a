"""Generated protobuf and gRPC stubs of the `dragoman.v1` API.

The modules beside this file are made by `make proto` from `proto/dragoman/v1`. They
are public for those who speak the wire protocol themselves; everyone else uses
`dragoman.Client`.
"""
