// SPDX-License-Identifier: GPL-2.0-only
//! The command lines of the three programs. Help, shell completions and man pages come from these definitions.

use crate::data::VectorSource;
use crate::fail::code;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// Makes a VexFS filesystem on a block device or in an image file.
#[derive(Debug, Parser)]
#[command(name = "mkfs.vexfs", version, after_help = code::HELP)]
pub struct Mkfs {
    /// Overwrite a device or image that holds something already
    #[arg(short, long)]
    pub force: bool,
    /// Name of the volume, up to 64 bytes
    #[arg(short = 'L', long, value_name = "LABEL", default_value = "")]
    pub label: String,
    /// Identity of the volume; drawn at random if not given
    #[arg(short = 'U', long, value_name = "UUID", value_parser = parse_uuid)]
    pub uuid: Option<[u8; 16]>,
    /// Size of the volume: bytes, or with K, M, G, T, P (powers of 1024). Makes or extends an image file; all of the target if not given
    #[arg(short, long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_size)]
    pub size: Option<u64>,
    /// Copies of metadata
    #[arg(long, value_enum, default_value = "dup")]
    pub metadata: Metadata,
    /// Print what was made as JSON
    #[arg(long)]
    pub json: bool,
    /// Print nothing when all went well
    #[arg(short, long)]
    pub quiet: bool,
    /// Block device or image file
    pub target: PathBuf,
}

/// Copies of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Metadata {
    /// One copy: damage is found, but not healed
    Single,
    /// Two copies: a bad one is healed from the good one
    Dup,
}

/// Checks a VexFS filesystem, and repairs it.
#[derive(Debug, Parser)]
#[command(
    name = "fsck.vexfs",
    version,
    after_help = "Exit codes as in fsck(8): 0 clean; 1 errors repaired; 4 errors left; 8 operational error; 16 wrong usage. Without -n, -p or -y it asks like -n."
)]
pub struct Fsck {
    /// Only look: write not a single byte
    #[arg(short = 'n', conflicts_with_all = ["preen", "yes"])]
    pub no: bool,
    /// Repair what can be repaired without losing anything
    #[arg(short = 'p', visible_short_alias = 'a', conflicts_with = "yes")]
    pub preen: bool,
    /// Repair all that can be repaired; what cannot be saved is given up and named
    #[arg(short = 'y')]
    pub yes: bool,
    /// Check even if the volume was cleanly unmounted (it always does; for fsck(8))
    #[arg(short = 'f', hide = true)]
    pub force: bool,
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
    /// Print every figure
    #[arg(short, long)]
    pub verbose: bool,
    /// Block device or image file
    pub target: PathBuf,
}

/// Files and vectors in one filesystem.
///
/// TARGET is a block device or an image file. PATH is a path on a mounted VexFS, or TARGET:/path to use an image
/// or device without mounting it; a path that exists wins.
#[derive(Debug, Parser)]
#[command(name = "vexfs", version, after_help = code::HELP)]
pub struct Vexfs {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Commands of `vexfs`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a filesystem on a block device or in an image file (also as mkfs.vexfs)
    Mkfs(Mkfs),
    /// Check a filesystem, and repair it (also as fsck.vexfs)
    Fsck(Fsck),
    /// Mount a volume through FUSE
    Mount(Mount),
    /// Unmount a volume
    Umount(Umount),
    /// Make, list, describe, reindex and drop collections
    #[command(subcommand)]
    Collection(Collection),
    /// Insert vectors as records of a collection
    Insert(Insert),
    /// Give files their embeddings
    Embed(Embed),
    /// Find the nearest records
    Search(Search),
    /// Print records by id
    Get(Get),
    /// Print the records of a collection in order of id
    List(List),
    /// Change attributes of records
    Update(Update),
    /// Delete records
    Delete(Delete),
    /// Write a collection to a directory: vectors (.npy), ids and attributes (.jsonl), one consistent snapshot
    Export(Export),
    /// Take in what export wrote; makes the collection if it is not there
    Import(Import),
    /// List a directory
    Ls(Ls),
    /// Print files
    Cat(Cat),
    /// Copy files into a volume
    Put(Put),
    /// Remove files and directories
    Rm(Rm),
    /// Make directories
    Mkdir(Mkdir),
    /// Describe files
    Stat(Stat),
    /// Read and verify every block that is in use
    Scrub(Scrub),
    /// Describe a volume
    Info(Info),
    /// Print completions for a shell
    Completions(Completions),
    /// Write the man pages of all programs into a directory
    Man(Man),
}

/// Mount a volume through FUSE
#[derive(Debug, Args)]
pub struct Mount {
    /// Block device or image file
    pub target: PathBuf,
    /// Directory to mount on
    pub dir: PathBuf,
    /// Mount options, separated by commas (ro, allow_other, default_permissions, dev, suid, noatime …)
    #[arg(short = 'o', long = "options", value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Stay in the foreground, and unmount on SIGINT or SIGTERM
    #[arg(long, visible_short_alias = 'f', short = 'f')]
    pub foreground: bool,
}

/// Unmount a volume
#[derive(Debug, Args)]
pub struct Umount {
    /// Directory that it is mounted on
    pub dir: PathBuf,
}

/// Commands about collections
#[derive(Debug, Subcommand)]
pub enum Collection {
    /// Make a directory a collection (the directory is made if it is not there)
    Create(CreateCollection),
    /// List the collections below a directory
    List(PathJson),
    /// Describe a collection
    Info(PathJson),
    /// Change index kind and parameters; searches go on meanwhile
    Reindex(Reindex),
    /// Make the collection an ordinary directory: its records go, its files and their embeddings stay
    Drop(PathJson),
}

/// How distances are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// Squared Euclidean distance
    L2,
    /// 1 − cosine similarity
    Cosine,
    /// − inner product
    Ip,
}

/// Kinds of indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Index {
    /// Compares with every vector; exact
    Flat,
    /// Hierarchical navigable small world graph
    Hnsw,
    /// Inverted file
    Ivf,
    /// Product quantisation
    Pq,
    /// Locality-sensitive hashing
    Lsh,
}

/// Parameters of an index; what is not given has the index kind's default.
#[derive(Clone, Debug, Default, Args)]
pub struct IndexParams {
    /// hnsw: links of a node in a layer (default 16)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub m: Option<u32>,
    /// hnsw: candidates while building (default 200)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub ef_construction: Option<u32>,
    /// ivf: number of lists (default by count)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub lists: Option<u32>,
    /// pq: number of subvectors (default by dimension: one for 4 elements, with 8 bits for 8)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub subvectors: Option<u32>,
    /// pq: bits for a subvector, 4 or 8 (default 4); lsh: bits for a table, 1 to 32 (default by count)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub bits: Option<u32>,
    /// lsh: number of tables (default 48, fewer for many dimensions)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub tables: Option<u32>,
    /// Seed of the index's random choices
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// Make a directory a collection
#[derive(Debug, Args)]
pub struct CreateCollection {
    /// Directory: under a mount, or TARGET:/path
    pub path: OsString,
    /// Dimension of the vectors, 1 to 65536
    #[arg(long, value_name = "D", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub dim: u32,
    /// How distances are measured
    #[arg(long, value_enum)]
    pub metric: Metric,
    /// Kind of index
    #[arg(long, value_enum, default_value = "hnsw")]
    pub index: Index,
    /// Parameters of the index
    #[command(flatten)]
    pub params: IndexParams,
    /// Name of the model that makes the embeddings, for people
    #[arg(long, value_name = "NAME", default_value = "")]
    pub model: String,
    /// Print the collection as JSON
    #[arg(long)]
    pub json: bool,
}

/// A path, and how to print.
#[derive(Debug, Args)]
pub struct PathJson {
    /// Directory: under a mount, or TARGET:/path
    pub path: OsString,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// Change index kind and parameters
#[derive(Debug, Args)]
pub struct Reindex {
    /// Collection: under a mount, or TARGET:/path
    pub path: OsString,
    /// New kind of index; the same kind is built anew
    #[arg(long, value_enum)]
    pub index: Option<Index>,
    /// Parameters of the index
    #[command(flatten)]
    pub params: IndexParams,
    /// Print the collection as JSON
    #[arg(long)]
    pub json: bool,
}

/// When inserted records are durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sync {
    /// Each record before the next one is sent
    Each,
    /// Each batch before the next one is sent
    Batch,
    /// All of them at the end
    End,
}

/// Insert vectors as records of a collection
#[derive(Debug, Args)]
pub struct Insert {
    /// Collection: under a mount, or TARGET:/path
    pub path: OsString,
    /// The vectors
    #[command(flatten)]
    pub source: VectorSource,
    /// Record ids: a .npy column of integers or a number on each line; without it they go on counting
    #[arg(long, value_name = "FILE")]
    pub ids: Option<PathBuf>,
    /// Attributes: a JSON object on each line, one for each vector
    #[arg(long, value_name = "FILE.jsonl")]
    pub attrs: Option<PathBuf>,
    /// Refuse ids that exist instead of replacing their records
    #[arg(long)]
    pub if_absent: bool,
    /// When the records are durable
    #[arg(long, value_enum, default_value = "batch")]
    pub sync: Sync,
    /// Records of a batch
    #[arg(long, value_name = "N", default_value = "1000", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub batch: u32,
    /// Print a summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// Give files their embeddings
#[derive(Debug, Args)]
pub struct Embed {
    /// Files: under a mount, or TARGET:/path; the vectors' rows belong to them in this order
    #[arg(required = true)]
    pub files: Vec<OsString>,
    /// The vector of the file, or a row for each file
    #[command(flatten)]
    pub source: EmbedSource,
    /// Return when the embeddings are durable
    #[arg(long)]
    pub sync: bool,
}

/// Where the embeddings of files come from.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct EmbedSource {
    /// The vector, its elements separated by commas or spaces: '0.1,0.2,0.3'
    #[arg(long, value_name = "NUMBERS", allow_hyphen_values = true)]
    pub vector: Option<String>,
    /// A NumPy file (.npy)
    #[arg(long, value_name = "FILE")]
    pub npy: Option<PathBuf>,
    /// A file in the .fvecs format
    #[arg(long, value_name = "FILE")]
    pub fvecs: Option<PathBuf>,
    /// Take the embedding away
    #[arg(long)]
    pub remove: bool,
    /// Print the embedding as JSON
    #[arg(long)]
    pub show: bool,
}

/// Find the nearest records
#[derive(Debug, Args)]
#[command(after_help = "Distances: l2 = squared Euclidean, cosine = 1 - cosine similarity, ip = - inner product. \
Filters: = != < <= > >= in (…), not in (…), and, or, not, exists(name); strings in quotes. Example: --where 'section = \"libs\" and installed_kib < 1000'")]
pub struct Search {
    /// Collection: under a mount, or TARGET:/path
    pub path: OsString,
    /// The queries
    #[command(flatten)]
    pub source: VectorSource,
    /// Most results of a query [default: 10, with --radius all]
    #[arg(short, long = "neighbours", value_name = "K", allow_negative_numbers = true, value_parser = parse_k)]
    pub k: Option<u32>,
    /// Only records whose attributes match
    #[arg(long = "where", value_name = "EXPR")]
    pub filter: Option<String>,
    /// Only results within this distance, itself included; without -k all of them
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub radius: Option<f64>,
    /// hnsw: candidates while searching
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..))]
    pub ef: Option<u32>,
    /// ivf: lists to look at (default a seventh, at least 40 or three quarters of fewer)
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..))]
    pub nprobe: Option<u32>,
    /// pq, lsh: candidates to compare exactly (default 10 for each result and at least 100; lsh twice as many)
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..))]
    pub rerank: Option<u32>,
    /// Compare with every vector, whatever the index kind
    #[arg(long)]
    pub exact: bool,
    /// Write the ids of the results in the .ivecs format
    #[arg(long, value_name = "OUT")]
    pub ivecs: Option<PathBuf>,
    /// Print one JSON object for each query
    #[arg(long)]
    pub json: bool,
    /// Report distance evaluations and time
    #[arg(long)]
    pub stats: bool,
}

/// Print records by id
#[derive(Debug, Args)]
pub struct Get {
    /// Collection: under a mount, or TARGET:/path
    pub path: OsString,
    /// Record ids
    #[arg(required = true, allow_negative_numbers = true, value_parser = parse_id)]
    pub ids: Vec<u64>,
    /// Print one JSON object for each record, with its vector
    #[arg(long)]
    pub json: bool,
}

/// Print the records of a collection in order of id
#[derive(Debug, Args)]
pub struct List {
    /// Collection: under a mount, or TARGET:/path
    pub path: OsString,
    /// Only records whose attributes match
    #[arg(long = "where", value_name = "EXPR")]
    pub filter: Option<String>,
    /// Print one JSON object for each record
    #[arg(long)]
    pub json: bool,
    /// With their vectors (JSON only)
    #[arg(long, requires = "json")]
    pub vectors: bool,
    /// Stop after this many
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_count)]
    pub limit: Option<u64>,
}

/// Change attributes of records
#[derive(Debug, Args)]
pub struct Update {
    /// Collection: under a mount, or TARGET:/path
    pub path: OsString,
    /// A JSON object on each line, one for each record; null takes an attribute away
    #[arg(long, value_name = "FILE.jsonl")]
    pub attrs: PathBuf,
    /// Record ids in the order of the lines; without it the member "id" of each line names its record
    #[arg(long, value_name = "FILE")]
    pub ids: Option<PathBuf>,
    /// The attributes given replace all that the record has; else they are added to them
    #[arg(long)]
    pub replace: bool,
    /// Print a summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// Delete records
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["ids", "filter"])))]
pub struct Delete {
    /// Collection: under a mount, or TARGET:/path
    pub path: OsString,
    /// Record ids
    #[arg(allow_negative_numbers = true, value_parser = parse_id)]
    pub ids: Vec<u64>,
    /// All records whose attributes match
    #[arg(long = "where", value_name = "EXPR")]
    pub filter: Option<String>,
    /// Print a summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// Write a collection to a directory
#[derive(Debug, Args)]
pub struct Export {
    /// Collection: under a mount, or TARGET:/path
    pub path: OsString,
    /// New or empty directory: collection.json, vectors.npy, ids.npy, attrs.jsonl, files.jsonl
    pub dir: PathBuf,
    /// Print a summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// Take in what export wrote
///
/// Bulk records come back whole. Files have to be in the directory already (cp -a, rsync -aX or tar --xattrs bring
/// them with their attributes): those that are get their embeddings, the others are counted.
#[derive(Debug, Args)]
pub struct Import {
    /// Collection: under a mount, or TARGET:/path; made if it is not there
    pub path: OsString,
    /// Directory that export wrote
    pub dir: PathBuf,
    /// Print a summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// List a directory
#[derive(Debug, Args)]
pub struct Ls {
    /// TARGET:/path
    pub path: OsString,
    /// With type, mode, owner, size and time
    #[arg(short, long)]
    pub long: bool,
    /// Print one JSON object for each entry
    #[arg(long)]
    pub json: bool,
}

/// Print files
#[derive(Debug, Args)]
pub struct Cat {
    /// TARGET:/path of files
    #[arg(required = true)]
    pub paths: Vec<OsString>,
}

/// Copy files into a volume
#[derive(Debug, Args)]
pub struct Put {
    /// Files to copy; - is the standard input
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// TARGET:/path of the new file, or of a directory
    pub to: OsString,
}

/// Remove files and directories
#[derive(Debug, Args)]
pub struct Rm {
    /// TARGET:/path of what goes
    #[arg(required = true)]
    pub paths: Vec<OsString>,
    /// Directories with all that is in them
    #[arg(short, long)]
    pub recursive: bool,
    /// No error for what is not there
    #[arg(short, long)]
    pub force: bool,
}

/// Make directories
#[derive(Debug, Args)]
pub struct Mkdir {
    /// TARGET:/path of the new directories
    #[arg(required = true)]
    pub paths: Vec<OsString>,
    /// Parents too, and no error if it is there
    #[arg(short, long)]
    pub parents: bool,
}

/// Describe files
#[derive(Debug, Args)]
pub struct Stat {
    /// TARGET:/path
    #[arg(required = true)]
    pub paths: Vec<OsString>,
    /// Print one JSON object for each
    #[arg(long)]
    pub json: bool,
}

/// Read and verify every block that is in use
#[derive(Debug, Args)]
pub struct Scrub {
    /// Block device or image file (not mounted)
    pub target: PathBuf,
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

/// Describe a volume
#[derive(Debug, Args)]
pub struct Info {
    /// Block device or image file
    pub target: PathBuf,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// Print completions for a shell
#[derive(Debug, Args)]
pub struct Completions {
    /// Shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Write the man pages of all programs into a directory
#[derive(Debug, Args)]
pub struct Man {
    /// Directory, made if it is not there
    pub dir: PathBuf,
}

/// A size with an optional suffix K, M, G, T or P (also KiB, MB …; always powers of 1024).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = text[digits.len()..].to_ascii_lowercase();
    let shift = match suffix.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(format!("'{suffix}' is no unit (K, M, G, T, P)")),
    };
    let n: u64 = digits.parse().map_err(|_| "not a size, write 64M or 10G".to_string())?;
    // Offsets in files are signed.
    n.checked_mul(1 << shift).filter(|n| i64::try_from(*n).is_ok()).ok_or_else(|| "too large".to_string())
}

/// A number of results.
fn parse_k(text: &str) -> Result<u32, String> {
    let k: i128 = text.parse().map_err(|_| "it has to be a whole number".to_string())?;
    if k < 1 {
        return Err("-k must be at least 1".to_string());
    }
    u32::try_from(k).map_err(|_| "it is too large".to_string())
}

/// A record id.
fn parse_id(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is no record id (an integer from 0 on)"))
}

/// A number of things.
fn parse_count(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "it has to be a whole number from 0 on".to_string())
}

/// A UUID in its usual form, dashes optional.
pub fn parse_uuid(text: &str) -> Result<[u8; 16], String> {
    let hex: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
    let mut out = [0; 16];
    if hex.len() != 32 || !hex.iter().all(u8::is_ascii_hexdigit) {
        return Err("not a UUID, it has 32 hexadecimal digits".to_string());
    }
    for (byte, pair) in out.iter_mut().zip(hex.chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
        *byte = digit(pair[0]) << 4 | digit(pair[1]);
    }
    Ok(out)
}

/// A UUID as people write it.
pub fn show_uuid(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definitions_are_sound() {
        Mkfs::command().debug_assert();
        Fsck::command().debug_assert();
        Vexfs::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("8TiB"), Ok(8 << 40));
        assert_eq!(parse_size("2gb"), Ok(2 << 30));
        for bad in ["", "M", "1X", "-1", "1.5G", "9000P", "99999999P"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn uuids() {
        let text = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
        assert_eq!(show_uuid(&parse_uuid(text).unwrap()), text);
        assert!(parse_uuid("0f1e2d3c").is_err());
        assert!(parse_uuid("zf1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0").is_err());
    }
}
