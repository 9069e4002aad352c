//! Limits of settings.

/// Checks that a setting is a number from `low` to `high`.
///
/// # Errors
/// A sentence with the key, its value and the limits.
pub(in crate::training) fn within(key: &str, value: f64, low: f64, high: f64) -> Result<(), String> {
    if value.is_finite() && (low..=high).contains(&value) {
        Ok(())
    } else {
        Err(format!("{key} is {value}, expected {low} to {high}"))
    }
}
