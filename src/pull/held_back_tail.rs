//! The held-back tail: the last bytes of a blob in transfer, withheld until its length and digest are verified.
//!
//! It ensures that no client receives a complete blob with a wrong digest. Fills withhold it on disk (the mark stays before
//! it). Bypasses withhold it in memory.

/// Length of the tail. A blob that is not longer is served only after verification.
pub(super) const HELD_BACK_TAIL_BYTES: u64 = 64 << 10;

/// Returns how many of the first `received` bytes of an unverified blob may be read. `total` is its announced length.
pub(super) fn readable_before_verification(received: u64, total: Option<u64>) -> u64 {
    match total {
        Some(total) => received.min(total.saturating_sub(HELD_BACK_TAIL_BYTES)),
        // The last byte received may be the last one of the blob.
        None => received.saturating_sub(HELD_BACK_TAIL_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_never_readable_before_verification() {
        const TAIL: u64 = HELD_BACK_TAIL_BYTES;
        for (received, total, readable) in [
            (0, Some(10), 0),
            (10, Some(10), 0),
            (TAIL, Some(TAIL), 0),
            (TAIL + 1, Some(TAIL + 1), 1),
            (5, Some(3 * TAIL), 5),
            (3 * TAIL, Some(3 * TAIL), 2 * TAIL),
            (TAIL, None, 0),
            (TAIL + 7, None, 7),
        ] {
            assert_eq!(readable_before_verification(received, total), readable, "{received} of {total:?}");
        }
    }
}
