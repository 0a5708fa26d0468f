//! Gauges of the store. They are read from the store when metrics are gathered, so no other code has to update them.

use std::sync::{Arc, OnceLock};

use prometheus::Result;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::StorageClass;
use super::families::StorageFamilies;

/// The values that the store reports at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageReading {
    /// Bytes of cached content.
    pub cached_bytes: u64,
    /// Bytes of pushed content.
    pub pushed_bytes: u64,
    /// Whether the index agrees with the files and the order of last use is complete.
    pub index_ready: bool,
    /// Bytes that cached content may take.
    pub max_size: u64,
    /// Bytes of the file system that stay free.
    pub min_free: u64,
    /// `None` if the file system cannot be asked.
    pub disk: Option<DiskReading>,
}

/// The state of the file system as it reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskReading {
    pub free_bytes: u64,
    pub free_inodes: u64,
}

/// Reads the store. Returns `None` after the store is closed.
pub(super) type StorageSource = Box<dyn Fn() -> Option<StorageReading> + Send + Sync>;

#[derive(Clone)]
pub(super) struct StorageCollector {
    families: StorageFamilies,
    source: Arc<OnceLock<StorageSource>>,
}

impl StorageCollector {
    /// Creates the gauges. All are 0 until there is a storage source.
    pub(super) fn new() -> Result<Self> {
        let families = StorageFamilies::declare()?;
        for class in StorageClass::ALL {
            families.storage_bytes.with_label_values(&[class.as_str()]);
        }
        Ok(Self { families, source: Arc::default() })
    }

    pub(super) fn set_source(&self, source: StorageSource) {
        let _ = self.source.set(source);
    }

    fn read(&self) {
        let Some(reading) = self.source.get().and_then(|read| read()) else { return };
        let classes = [(StorageClass::Cached, reading.cached_bytes), (StorageClass::Pushed, reading.pushed_bytes)];
        for (class, bytes) in classes {
            let gauge = self.families.storage_bytes.with_label_values(&[class.as_str()]);
            gauge.set(value(bytes));
        }
        self.families.storage_capacity.set(value(reading.max_size));
        self.families.storage_min_free.set(value(reading.min_free));
        let disk = reading.disk;
        self.families.storage_free.set(disk.map_or(-1, |disk| value(disk.free_bytes)));
        self.families.storage_free_inodes.set(disk.map_or(-1, |disk| value(disk.free_inodes)));
        self.families.index_ready.set(reading.index_ready.into());
    }
}

impl Collector for StorageCollector {
    fn desc(&self) -> Vec<&Desc> {
        let StorageFamilies {
            storage_bytes,
            storage_capacity,
            storage_min_free,
            storage_free,
            storage_free_inodes,
            index_ready,
        } = &self.families;
        let gauges = [storage_capacity, storage_min_free, storage_free, storage_free_inodes, index_ready];
        storage_bytes.desc().into_iter().chain(gauges.into_iter().flat_map(|gauge| gauge.desc())).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read();
        self.families.collectors().iter().flat_map(|family| family.collect()).collect()
    }
}

fn value(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
