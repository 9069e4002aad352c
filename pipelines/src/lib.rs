//! How work flows: the serving pipeline, and the command line over everything.

pub mod adapters;
pub mod cli;
pub mod commands;
pub mod health;
pub mod output;
pub mod role;
pub mod serving;
pub mod shutdown;
pub mod stages;
mod trackers;
