//! Files to variables: safetensors loading with exact coverage, and importers of other formats.

pub mod import;
