//! The quorum over members that do what a test tells them.
