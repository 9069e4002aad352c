//! Cutting a long sound into windows that an encoder takes at once.

use std::ops::Range;

/// The windows of a sound of `samples` samples: each of `window` samples but the last, which may be shorter, each
/// sharing `overlap` samples with the one before. Together they cover every sample; a sound that fits has one window.
///
/// # Panics
/// When `window` is 0 or `overlap` is not smaller than `window`.
pub fn windows(samples: usize, window: usize, overlap: usize) -> Vec<Range<usize>> {
    assert!(
        overlap < window,
        "windows of {window} samples cannot share {overlap}"
    );
    let step = window - overlap;
    let mut windows = Vec::new();
    let mut start = 0;
    while start < samples {
        let end = samples.min(start + window);
        windows.push(start..end);
        if end == samples {
            break;
        }
        start += step;
    }
    windows
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_sound_that_fits_has_one_window() {
        assert_eq!(windows(10, 10, 3), [0..10]);
        assert_eq!(windows(1, 10, 3), [0..1]);
        assert!(windows(0, 10, 3).is_empty());
    }

    #[test]
    fn windows_share_the_overlap_and_the_last_one_is_shorter() {
        assert_eq!(windows(25, 10, 2), [0..10, 8..18, 16..25]);
    }

    proptest! {
        #[test]
        fn every_sample_is_in_a_window(samples in 0..10_000_usize, window in 1..500_usize, share in 0..100_usize) {
            let overlap = share * window / 100;

            let windows = windows(samples, window, overlap);

            let mut covered = 0;
            for range in &windows {
                prop_assert!(range.start <= covered && range.end > covered && range.len() <= window);
                covered = range.end;
            }
            prop_assert_eq!(covered, samples);
        }
    }
}
