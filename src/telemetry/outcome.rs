//! The values of the labels `type`, `result` and `class`.

/// The `type` label: the kind of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentKind {
    Blob,
    Manifest,
}

/// The `result` label: how a client's GET of mirrored content was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheResult {
    /// From the cache, without a request to the upstream.
    Hit,
    /// From the cache, within `stale_while_revalidate`, while the upstream is asked in the background.
    Refreshing,
    /// From the cache, after the upstream confirmed it.
    Revalidated,
    /// From the cache, because the upstream failed.
    Stale,
    /// From the cache, after a fill of another request had stored it.
    JoinedCommitted,
    /// Started a fill.
    Miss,
    /// Follows a fill that another request started.
    Joined,
    /// Transferred past the store, for this client alone.
    Bypass,
    /// The upstream does not have the content, now or within `negative_ttl`.
    Negative,
    /// Answered with an error.
    Error,
}

/// The `class` label: why content is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageClass {
    Cached,
    Pushed,
}

// === impl ContentKind ===

impl ContentKind {
    pub const ALL: [Self; 2] = [Self::Blob, Self::Manifest];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Manifest => "manifest",
        }
    }
}

// === impl CacheResult ===

impl CacheResult {
    /// All results in the order of their declaration, so that `ALL[result as usize] == result`.
    pub const ALL: [Self; 10] = [
        Self::Hit,
        Self::Refreshing,
        Self::Revalidated,
        Self::Stale,
        Self::JoinedCommitted,
        Self::Miss,
        Self::Joined,
        Self::Bypass,
        Self::Negative,
        Self::Error,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Refreshing => "refreshing",
            Self::Revalidated => "revalidated",
            Self::Stale => "stale",
            Self::JoinedCommitted => "joined_committed",
            Self::Miss => "miss",
            Self::Joined => "joined",
            Self::Bypass => "bypass",
            Self::Negative => "negative",
            Self::Error => "error",
        }
    }

    /// Whether the result counts as a hit. Every other one counts as a miss.
    pub fn is_hit(self) -> bool {
        matches!(self, Self::Hit | Self::Refreshing | Self::Revalidated | Self::Stale | Self::JoinedCommitted)
    }
}

// === impl StorageClass ===

impl StorageClass {
    pub const ALL: [Self; 2] = [Self::Cached, Self::Pushed];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Pushed => "pushed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_their_declaration() {
        for (place, result) in CacheResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, place);
        }
        for (place, kind) in ContentKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
        }
    }
}
