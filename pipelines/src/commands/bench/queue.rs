//! What waiting alone costs at a load: the latencies of one queue before one server.

use super::asking::Arrivals;

/// Requests of a simulation: its 99th percentile is then known to a few per cent.
const REQUESTS: usize = 200_000;

/// Latencies, seconds, in order, of requests of which `rate` arrive a second, and that are answered in turn
/// by one server, each in one of `alone`, the seconds that a request took while there was no other
/// (Lindley's recursion). None where that server could not keep up.
///
/// A service without batches that adds nothing of its own can do no better without answering out of turn.
pub(super) fn latencies(alone: &[f64], rate: f64, arrivals: &mut Arrivals) -> Option<Vec<f64>> {
    let mean = alone.iter().sum::<f64>() / alone.len() as f64;
    if !(rate > 0.0 && rate * mean < 1.0) {
        return None; // also where there is no value
    }
    let mut wait = 0.0f64;
    let mut found: Vec<f64> = (0..REQUESTS)
        .map(|_| {
            let latency = wait + alone[arrivals.below(alone.len())];
            wait = (latency - arrivals.gap(rate)).max(0.0);
            latency
        })
        .collect();
    found.sort_by(f64::total_cmp);
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ArrivalKind;

    /// The mean wait before a server that always takes one second is `rate / (2 (1 - rate))`
    /// (Pollaczek and Khinchine), twice that where the time is exponential.
    #[test]
    fn the_mean_wait_is_that_of_the_formula() {
        let mean_wait = |alone: &[f64], rate: f64| {
            let found = latencies(alone, rate, &mut Arrivals::new(ArrivalKind::Poisson, 3)).unwrap();
            found.iter().sum::<f64>() / found.len() as f64 - alone.iter().sum::<f64>() / alone.len() as f64
        };
        let mixed = [0.5, 1.5]; // E[S²] = 1.25

        assert!((mean_wait(&[1.0], 0.5) - 0.5).abs() < 0.02);
        assert!((mean_wait(&[1.0], 0.8) - 2.0).abs() < 0.15);
        assert!((mean_wait(&mixed, 0.5) - 0.5 * 1.25).abs() < 0.03);
    }

    #[test]
    fn nobody_waits_where_evenly_spaced_requests_take_less_than_the_time_between_them() {
        let found = latencies(&[1.0], 0.8, &mut Arrivals::new(ArrivalKind::Even, 3)).unwrap();

        assert!(found.iter().all(|latency| *latency == 1.0));
    }

    #[test]
    fn a_load_that_one_server_cannot_take_has_no_answer() {
        for (alone, rate) in [(&[1.0][..], 1.0), (&[1.0], 0.0), (&[], 0.5)] {
            assert!(latencies(alone, rate, &mut Arrivals::new(ArrivalKind::Poisson, 3)).is_none());
        }
    }
}
