//! Who works: the actors.
