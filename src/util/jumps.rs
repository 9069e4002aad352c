//! Jumps of the time of day that a test orders through the environment; only with the feature `testsuite`.

use std::sync::OnceLock;
use std::time::Instant;

use jiff::SignedDuration;

/// When the time of day jumps, milliseconds after it is first asked for, and by how many seconds:
/// `2000:300,5000:-600`.
const ORDERS: &str = "SPEECHVERSE_TEST_CLOCK_JUMPS";

/// What the jumps so far add up to.
pub(super) fn jumped() -> SignedDuration {
    static ORDERED: OnceLock<(Instant, Vec<(u128, i64)>)> = OnceLock::new();
    let (start, jumps) = ORDERED.get_or_init(|| {
        let orders = std::env::var(ORDERS).unwrap_or_default();
        (Instant::now(), parse(&orders))
    });
    let elapsed = start.elapsed().as_millis();
    let past = jumps.iter().filter(|(after_ms, _)| *after_ms <= elapsed);
    SignedDuration::from_secs(past.map(|(_, seconds)| seconds).sum())
}

fn parse(text: &str) -> Vec<(u128, i64)> {
    let jump = |part: &str| {
        let (after_ms, seconds) = part.split_once(':')?;
        Some((after_ms.parse().ok()?, seconds.parse().ok()?))
    };
    let parts = text.split(',').filter(|part| !part.is_empty());
    parts
        .map(|part| jump(part).unwrap_or_else(|| panic!("`{part}` of {ORDERS} is not MILLISECONDS:SECONDS")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_has_a_time_and_a_distance() {
        assert_eq!(parse("2000:300,5000:-600"), [(2_000, 300), (5_000, -600)]);
        assert!(parse("").is_empty());
    }
}
