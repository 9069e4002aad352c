//! How work flows.
