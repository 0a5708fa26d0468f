//! Takes over images from the folder of another registry, or from image files.
//!
//! | file | what |
//! |---|---|
//! | `source`, `tree`, `folder`, `tar` | recognises a source, and reads its files and nothing outside of it |
//! | `registry`, `layout`, `docker_archive` | the three formats: which repositories, manifests and tags there are |
//! | `image_name`, `destination` | in which repository of this server they belong |
//! | `manifests`, `blobs`, `names` | copies to the store, through its contracts alone |
//! | `run`, `report` | the order of the work, and what it tells |
//!
//! The order within a repository is that of a push: blobs, manifests, indexes, tags. Each digest is verified while its
//! content is copied. Whatever is stored already is not copied again, so an import can be repeated.
//!
//! All of it blocks, and belongs on the blocking pool. The operations of the store are awaited there.

mod blobs;
mod destination;
mod docker_archive;
mod folder;
mod image_name;
mod layout;
mod manifests;
mod names;
mod registry;
mod report;
mod run;
mod source;
mod tar;
mod tree;

pub use destination::{DestinationError, Destinations};
pub use report::{ImportEvent, ImportProgress, ImportSummary, ImportedRepository, LeftOut};
pub use run::{ImportOptions, import};
pub use source::{Source, SourceError};
