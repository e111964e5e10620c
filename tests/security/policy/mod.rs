//! What policy says of command lines: a table of them, and what real shells do with those that it lets pass.

mod corpus;
mod options;
mod shells;
