//! Numbers that may not be any.
//!
//! JSON has no NaN, so serde writes `null` for one. It has to be readable again: whoever waits for the end of
//! a cycle must not miss it because a figure of it could not be computed.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// Reads a number, and `null` as NaN.
pub(super) fn or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Reads named numbers, and `null` as NaN.
pub(super) fn map_or_null<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, f64>, D::Error> {
    let named: BTreeMap<String, Option<f64>> = BTreeMap::deserialize(deserializer)?;
    Ok(named
        .into_iter()
        .map(|(name, number)| (name, number.unwrap_or(f64::NAN)))
        .collect())
}
