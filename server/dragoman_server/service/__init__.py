"""What is asked and what is answered: the methods of the API without gRPC and protobuf, for any front end to host."""
