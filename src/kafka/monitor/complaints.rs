//! What clients complain of: each is said once in a while, and counted in between.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The same complaint is logged once in this time.
pub(super) const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);
/// Different complaints that are remembered.
const COMPLAINTS_MAX: usize = 64;
/// Characters of a complaint that tell it from another.
const CHARACTERS_MAX: usize = 160;

/// What was said lately.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    said: HashMap<String, Complaint>,
}

#[derive(Debug)]
struct Complaint {
    said: Instant,
    unsaid: u64,
}

impl Complaints {
    /// Whether a complaint is due (again); then how often it was left out meanwhile. Two that differ in their
    /// digits only are the same.
    pub(super) fn said(&mut self, subject: &str, message: &str, interval: Duration) -> Option<u64> {
        let now = Instant::now();
        let words = message.chars().filter(|character| !character.is_ascii_digit());
        let words: String = words.take(CHARACTERS_MAX).collect();
        let key = format!("{subject} {words}");
        if let Some(complaint) = self.said.get_mut(&key) {
            if now.duration_since(complaint.said) < interval {
                complaint.unsaid += 1;
                return None;
            }
            complaint.said = now;
            return Some(std::mem::take(&mut complaint.unsaid));
        }
        if self.said.len() >= COMPLAINTS_MAX {
            self.said
                .retain(|_, complaint| now.duration_since(complaint.said) < interval);
        }
        if self.said.len() < COMPLAINTS_MAX {
            let complaint = Complaint { said: now, unsaid: 0 };
            self.said.insert(key, complaint);
        }
        Some(0)
    }

    /// Whether nothing was said lately.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.said.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_complaint_is_due_once_in_its_interval_whatever_its_numbers() {
        let mut complaints = Complaints::default();
        let mut say = |number: u32, interval| {
            complaints.said("MAXPOLL", &format!("{number} ms since the last poll"), interval)
        };

        assert_eq!(say(0, COMPLAINT_INTERVAL), Some(0));
        for number in 1..50 {
            assert_eq!(say(number, COMPLAINT_INTERVAL), None);
        }
        assert_eq!(say(50, Duration::ZERO), Some(49));
        assert_eq!(complaints.said("MAXPOLL", "another", COMPLAINT_INTERVAL), Some(0));
    }

    #[test]
    fn different_complaints_without_end_take_no_memory_without_end() {
        let mut complaints = Complaints::default();
        for number in 0..10_000_u32 {
            let word: String = number
                .to_string()
                .bytes()
                .map(|digit| char::from(digit + 49))
                .collect();
            complaints.said("read", &word, COMPLAINT_INTERVAL);
        }

        assert!(complaints.said.len() <= COMPLAINTS_MAX);
        assert!(!complaints.is_empty());
    }
}
