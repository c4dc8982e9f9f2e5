/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The request/reply protocol of VexFS volumes, for C. It says the same as core/src/proto/wire.rs; a test compares
 * every offset, size and number of the two.
 *
 * A frame is one request or one reply, at most VEXFS_FRAME_MAX bytes. All integers are little-endian. A
 * request is struct vexfs_request_head, the structure of its operation, and its sections in the order in which the
 * structure's comment names them; every section starts at a multiple of 8 bytes from the start of the frame, and
 * padding is zero. A reply is struct vexfs_reply_head; if its status is 0 the structure and sections of the
 * operation's reply follow, else a message in UTF-8 without a terminating zero.
 *
 * Open ".vexfs" in a directory of a mounted volume for reading and writing, write(2) a request in any pieces, read(2)
 * its reply in any pieces. Requests are about that directory and run with the rights of who opened the file.
 */
#ifndef VEXFS_H
#define VEXFS_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Version of the protocol. */
#define VEXFS_PROTOCOL_VERSION 1
/* Name of the control file in every directory. */
#define VEXFS_CONTROL_FILE ".vexfs"
/* Largest frame in bytes, either way. */
#define VEXFS_FRAME_MAX (64U << 20)
/* Most bytes of a request that one ioctl carries. */
#define VEXFS_IOCTL_MAX 16383
/* The ioctl that does what writing len bytes of a request does (its argument points to them). For a file system
 * that is mounted read-only: open the control file for reading, send requests by this and read the replies. */
#define VEXFS_IOCTL_REQUEST(len) _IOC(_IOC_WRITE, 0xe7, 1, (len))
/* Largest dimension. */
#define VEXFS_DIM_MAX 65536
/* Largest dimension of an embedding that the attribute EMBEDDING_XATTR can carry. */
#define VEXFS_XATTR_DIM_MAX 16384
/* The embedding as an extended attribute: little-endian f32. */
#define VEXFS_EMBEDDING_XATTR "user.vexfs.embedding"
/* Largest k of a search; a range search that wants everything asks for this many. */
#define VEXFS_K_MAX (1U << 20)
/* Most queries in one search; more take several requests. */
#define VEXFS_QUERIES_MAX 4096
/* Longest filter text in bytes. */
#define VEXFS_FILTER_MAX 65536
/* Longest model name in bytes. */
#define VEXFS_MODEL_MAX 255
/* Longest name of a directory entry or an attribute in bytes. */
#define VEXFS_NAME_MAX 255
/* Most bytes of encoded attributes of one record. */
#define VEXFS_ATTRS_MAX 65536
/* Record ids from here on are files: FILE_ID_BASE + inode number. Below are bulk records. */
#define VEXFS_FILE_ID_BASE (1ULL << 63)
/* In vexfs_records_reply.next: there is no further page. */
#define VEXFS_LIST_END 0xffffffffffffffffULL
/* In vexfs_reply_head.position: the error is about no particular place. */
#define VEXFS_NO_POSITION 0xffffffffU

/* Operations: vexfs_request_head.op. */
#define VEXFS_OP_CREATE 1 /* Makes the directory a collection. Schema, then the model name. Reply: vexfs_collection_info, model name. */
#define VEXFS_OP_INFO 2 /* Describes the collection. No structure. Reply: vexfs_collection_info, model name. */
#define VEXFS_OP_DROP 3 /* The directory stops being a collection: bulk records go; the directory, its files and their embeddings stay. No structure. Reply: nothing. */
#define VEXFS_OP_REINDEX 4 /* Changes index kind and parameters. Schema without a model name (dim, metric and element 0; index 0 and parameters 0 keep what is). Reply: vexfs_collection_info, model name. */
#define VEXFS_OP_INSERT 5 /* Inserts or replaces records. Insert. Reply: vexfs_insert_reply. */
#define VEXFS_OP_GET 6 /* Records by id. Get. Reply: vexfs_records_reply, one record for each id in the order asked. */
#define VEXFS_OP_DELETE 7 /* Deletes records by id (a file's record: removes its embedding). Ids. Reply: vexfs_delete_reply. */
#define VEXFS_OP_DELETE_WHERE 8 /* Deletes the bulk records that match a filter. Text, filter. Reply: vexfs_delete_reply. */
#define VEXFS_OP_UPDATE_ATTRS 9 /* Changes attributes of bulk records. vexfs_update_attrs. Reply: vexfs_delete_reply (done: records changed, missing: ids that do not exist). */
#define VEXFS_OP_SEARCH 10 /* Nearest records, one list for each query. Search. Reply: vexfs_search_reply. */
#define VEXFS_OP_LIST 11 /* A page of records in order of id. List. Reply: vexfs_records_reply. */
#define VEXFS_OP_EMBED 12 /* Sets, replaces or removes the embedding of a file. Embed. Reply: nothing. */
#define VEXFS_OP_GET_EMBEDDING 13 /* The embedding of a file. Embed with dim 0. Reply: vexfs_embedding_reply. */
#define VEXFS_OP_SYNC 14 /* Makes durable everything that was acknowledged before. No structure. Reply: nothing. */
#define VEXFS_OP_COLLECTIONS 15 /* Collections under the directory, a page at a time. Collections. Reply: vexfs_collections_reply. */
#define VEXFS_OP_STATS 16 /* Figures of the volume. No structure. Reply: vexfs_stats_reply. */

/* Bits of vexfs_request_head.flags. */
#define VEXFS_REQUEST_DURABLE 1 /* A change: reply only when it is durable, not merely acknowledged. */

/* Metrics: vexfs_schema.metric. */
#define VEXFS_METRIC_L2 1 /* Squared Euclidean distance. */
#define VEXFS_METRIC_COSINE 2 /* 1 − cosine similarity. */
#define VEXFS_METRIC_IP 3 /* − inner product. */

/* Element types: vexfs_schema.element. */
#define VEXFS_ELEMENT_F32 1 /* 32-bit floats. */
#define VEXFS_ELEMENT_F16 2 /* 16-bit floats (reserved). */
#define VEXFS_ELEMENT_I8 3 /* 8-bit integers (reserved). */

/* Index kinds: vexfs_schema.index. */
#define VEXFS_INDEX_FLAT 1 /* Exact: compares with every vector. */
#define VEXFS_INDEX_HNSW 2 /* Hierarchical navigable small world graph. */
#define VEXFS_INDEX_IVF 3 /* Inverted file. */
#define VEXFS_INDEX_PQ 4 /* Product quantisation. */
#define VEXFS_INDEX_LSH 5 /* Locality-sensitive hashing. */

/* Bits of vexfs_insert.flags. */
#define VEXFS_INSERT_IDS 1 /* Ids follow; else ids continue the collection's counter. */
#define VEXFS_INSERT_ATTRS 2 /* Attributes follow. */
#define VEXFS_INSERT_IF_ABSENT 4 /* Refuse the request (EEXIST) if one of the ids exists. */

/* Bits of vexfs_get.flags, vexfs_list.flags and vexfs_search.flags: what a reply is to contain. */
#define VEXFS_WANT_VECTORS 1 /* Vectors (not for searches). */
#define VEXFS_WANT_ATTRS 2 /* Attributes (not for searches). */
#define VEXFS_WANT_PATHS 4 /* Names of files within the collection. */

/* Further bits of vexfs_search.flags. */
#define VEXFS_SEARCH_RADIUS 16 /* Only results within vexfs_search.radius. */
#define VEXFS_SEARCH_EXACT 32 /* Compare with every vector, whatever the index kind. */

/* Bits of vexfs_update_attrs.flags. */
#define VEXFS_UPDATE_REPLACE 1 /* The attributes given replace all; else they are merged in, and type NONE removes a name. */

/* Bits of vexfs_embed.flags. */
#define VEXFS_EMBED_REMOVE 1 /* Remove the embedding (dim 0). */

/* Bits of vexfs_collections.flags. */
#define VEXFS_COLLECTIONS_RECURSIVE 1 /* Directories below the directory too; else only its children and itself. */

/* Bits of vexfs_record_head.flags. */
#define VEXFS_RECORD_PRESENT 1 /* The record exists (in a reply to GET, ids that do not are listed without this bit). */
#define VEXFS_RECORD_STALE 2 /* A file was overwritten after it got its embedding. */
#define VEXFS_RECORD_UNINDEXED 4 /* A file whose embedding the collection cannot search: another dimension, or zero under cosine. */
#define VEXFS_RECORD_DAMAGED 8 /* The vector of the record is damaged on the device: it is neither searched nor in the reply. */

/* Bits of vexfs_collection_info.flags. */
#define VEXFS_INFO_POPULATING 1 /* Files that were in the directory before are still being taken in. */
#define VEXFS_INFO_CATCHING_UP 2 /* Some records are not in the index yet (searches find them all the same). */

/* Types of attribute values: vexfs_attr_head.ty. */
#define VEXFS_ATTR_NONE 0 /* No value: removes the attribute (UPDATE_ATTRS without REPLACE only). */
#define VEXFS_ATTR_STRING 1 /* Text: UTF-8 in requests; a file's extended attributes may be any bytes. */
#define VEXFS_ATTR_I64 2 /* 64-bit signed integer. */
#define VEXFS_ATTR_F64 3 /* f64 bits; neither NaN nor infinite. */
#define VEXFS_ATTR_BOOL 4 /* One byte, 0 or 1. */

/* Start of every request. */
struct vexfs_request_head {
	__le32 len; /* Bytes of the whole frame, this head included; at most FRAME_MAX. */
	__le16 version; /* VERSION. */
	__le16 op; /* One of op. */
	__le64 tag; /* Any number; the reply repeats it. */
	__le32 flags; /* Bits of request_flags. */
	__le32 reserved; /* Zero. */
	__le64 reserved2; /* Zero. */
};
_Static_assert(sizeof(struct vexfs_request_head) == 32, "vexfs_request_head");

/* Start of every reply. */
struct vexfs_reply_head {
	__le32 len; /* Bytes of the whole frame, this head included. */
	__le16 version; /* VERSION. */
	__le16 op; /* As in the request. */
	__le64 tag; /* As in the request. */
	__le32 status; /* 0, or a Linux error number (positive); then a message in UTF-8 is all that follows. */
	__le32 position; /* With an error: the byte of the filter text, or the number of the vector, query or record that it is about; else NO_POSITION. */
	__le64 done; /* With an error: how many records of the request were done before; else 0. */
};
_Static_assert(sizeof(struct vexfs_reply_head) == 32, "vexfs_reply_head");

/* What a collection is. The model name follows. */
struct vexfs_schema {
	__le32 dim; /* Dimension, 1 to DIM_MAX. */
	__le32 metric; /* One of metric. */
	__le32 element; /* One of element. */
	__le32 index; /* One of index. */
	__le32 m; /* HNSW: links per node and layer. 0 here and below: the default. */
	__le32 ef_construction; /* HNSW: candidates while building. */
	__le32 lists; /* IVF: number of lists. */
	__le32 subvectors; /* PQ: number of subvectors. */
	__le32 bits; /* PQ, LSH: bits per code. */
	__le32 tables; /* LSH: number of tables. */
	__le64 seed; /* Seed of every random choice of the index. */
	__le32 model_len; /* Bytes of the model name, at most MODEL_MAX. */
	__le32 reserved; /* Zero. */
};
_Static_assert(sizeof(struct vexfs_schema) == 56, "vexfs_schema");

/* A collection as it is. The model name follows. */
struct vexfs_collection_info {
	__le32 dim; /* Dimension. */
	__le32 metric; /* One of metric. */
	__le32 element; /* One of element. */
	__le32 index; /* One of index. */
	__le32 m; /* As in Schema; the value in use. */
	__le32 ef_construction; /* As in Schema. */
	__le32 lists; /* As in Schema. */
	__le32 subvectors; /* As in Schema. */
	__le32 bits; /* As in Schema. */
	__le32 tables; /* As in Schema. */
	__le64 seed; /* As in Schema. */
	__le64 ino; /* Inode of the directory. */
	__le64 next_id; /* Id that the next insert without ids begins with. */
	__le64 records; /* Bulk records. */
	__le64 files; /* Files that are searched. */
	__le64 unindexed; /* Files whose embedding it cannot search: another dimension, or zero under cosine. */
	__le64 pending; /* Records that are not in the index yet. */
	__le64 tombstones; /* Deleted entries that the index still passes through. */
	__le64 index_bytes; /* Bytes of the stored index. */
	__le64 change; /* Grows with every change of the collection. */
	__le32 flags; /* Bits of info_flags. */
	__le32 model_len; /* Bytes of the model name. */
	__le64 damaged; /* Records whose vector is damaged on the device. */
	__le64 memory; /* Bytes of memory that the loaded collection takes. */
};
_Static_assert(sizeof(struct vexfs_collection_info) == 144, "vexfs_collection_info");

/*
 * Records to insert. Sections: ids (count u64; with IDS), vectors (count * dim f32), ends of the records'
 * attributes within the attributes (count u32; with ATTRS), attributes (with ATTRS).
 */
struct vexfs_insert {
	__le32 count; /* Number of records, at least 1. */
	__le32 dim; /* Dimension of the vectors. */
	__le32 flags; /* Bits of insert_flags. */
	__le32 attrs_len; /* Bytes of all attributes together. */
	__le64 reserved; /* Zero. */
};
_Static_assert(sizeof(struct vexfs_insert) == 24, "vexfs_insert");

/* Reply to INSERT. */
struct vexfs_insert_reply {
	__le64 count; /* Records inserted or replaced. */
	__le64 first_id; /* Without IDS: the id of the first record, the others follow it. With IDS: the first id. */
};
_Static_assert(sizeof(struct vexfs_insert_reply) == 16, "vexfs_insert_reply");

/* Records to fetch. Section: ids (count u64). */
struct vexfs_get {
	__le32 count; /* Number of ids, at least 1. */
	__le32 flags; /* Bits of want. */
	__le64 reserved; /* Zero. */
};
_Static_assert(sizeof(struct vexfs_get) == 16, "vexfs_get");

/* Records to delete. Section: ids (count u64). */
struct vexfs_ids {
	__le32 count; /* Number of ids, at least 1. */
	__le32 flags; /* Zero. */
	__le64 reserved; /* Zero. */
};
_Static_assert(sizeof(struct vexfs_ids) == 16, "vexfs_ids");

/* A filter. Section: its text. */
struct vexfs_text {
	__le32 len; /* Bytes of the text, at most FILTER_MAX. */
	__le32 flags; /* Zero. */
	__le64 reserved; /* Zero. */
};
_Static_assert(sizeof(struct vexfs_text) == 16, "vexfs_text");

/* Reply to DELETE, DELETE_WHERE and UPDATE_ATTRS. */
struct vexfs_delete_reply {
	__le64 done; /* Records deleted or changed. */
	__le64 missing; /* Ids that do not exist. */
};
_Static_assert(sizeof(struct vexfs_delete_reply) == 16, "vexfs_delete_reply");

/*
 * Attributes to change. Sections: ids (count u64), ends of the records' attributes within the attributes (count
 * u32), attributes.
 */
struct vexfs_update_attrs {
	__le32 count; /* Number of records, at least 1. */
	__le32 flags; /* Bits of update_flags. */
	__le32 attrs_len; /* Bytes of all attributes together. */
	__le32 reserved; /* Zero. */
};
_Static_assert(sizeof(struct vexfs_update_attrs) == 16, "vexfs_update_attrs");

/* A search. Sections: queries (count * dim f32), filter text. */
struct vexfs_search {
	__le32 count; /* Number of queries, 1 to QUERIES_MAX. */
	__le32 dim; /* Dimension of the queries. */
	__le32 k; /* Most results of a query, 1 to K_MAX. */
	__le32 flags; /* Bits of want (PATHS) and search_flags. */
	__le32 ef; /* HNSW: candidates while searching; 0: the default. Other kinds ignore it. */
	__le32 nprobe; /* IVF: lists to look at; 0: the default. Other kinds ignore it. */
	__le32 rerank; /* PQ, LSH: candidates to compare exactly; 0: the default. Other kinds ignore it. */
	__le32 filter_len; /* Bytes of the filter text; 0: no filter. */
	__le64 radius; /* f64 bits of the largest distance, in the units of the results (with RADIUS). */
	__le64 reserved; /* Zero. */
};
_Static_assert(sizeof(struct vexfs_search) == 48, "vexfs_search");

/*
 * Reply to SEARCH. Then for each query: vexfs_query_head, its vexfs_hit structures nearest first (ties: lower id
 * first), its paths.
 */
struct vexfs_search_reply {
	__le32 count; /* Number of queries. */
	__le32 reserved; /* Zero. */
	__le64 evaluations; /* Distance evaluations of all queries. */
	__le64 hops; /* Graph nodes (or lists) visited by all queries. */
	__le64 reads; /* Pages of vectors that had to be read because they were not in memory. */
};
_Static_assert(sizeof(struct vexfs_search_reply) == 32, "vexfs_search_reply");

/* Results of one query. Sections: hits, paths (each a u16 length and the name's bytes). */
struct vexfs_query_head {
	__le32 hits; /* Number of results. */
	__le32 paths_len; /* Bytes of the paths of all results, in the order of the results. */
	__le64 evaluations; /* Distance evaluations. */
	__le64 hops; /* Graph nodes (or lists) visited. */
};
_Static_assert(sizeof(struct vexfs_query_head) == 24, "vexfs_query_head");

/* One result. */
struct vexfs_hit {
	__le64 id; /* Record id. */
	__le64 distance; /* f64 bits of the distance: l2 squared, 1 − cosine similarity, − inner product. */
	__le32 paths; /* Number of names of this file in the collection (with PATHS). */
	__le32 reserved; /* Zero. */
};
_Static_assert(sizeof(struct vexfs_hit) == 24, "vexfs_hit");

/* A page of records. Section: filter text. */
struct vexfs_list {
	__le64 cursor; /* First id to look at: 0, then vexfs_records_reply.next. */
	__le32 max_records; /* Most records in the page; 0: as many as fit. */
	__le32 max_bytes; /* Most bytes of the reply, at least one record; 0: FRAME_MAX. */
	__le32 flags; /* Bits of want. */
	__le32 filter_len; /* Bytes of the filter text; 0: no filter. */
	__le64 reserved; /* Zero. */
};
_Static_assert(sizeof(struct vexfs_list) == 32, "vexfs_list");

/* Reply to GET and LIST: for each record a vexfs_record_head with its sections follows. */
struct vexfs_records_reply {
	__le32 count; /* Number of records. */
	__le32 dim; /* Dimension of the collection. */
	__le64 next; /* Cursor of the next page, or LIST_END. */
	__le64 change; /* vexfs_collection_info.change when the page was made; the same in all pages of an unchanged collection. */
	__le64 reserved; /* Zero. */
};
_Static_assert(sizeof(struct vexfs_records_reply) == 32, "vexfs_records_reply");

/* One record. Sections: vector (dim f32), attributes, paths (each a u16 length and the name's bytes). */
struct vexfs_record_head {
	__le64 id; /* Record id. */
	__le32 flags; /* Bits of record_flags. */
	__le32 dim; /* Elements of the vector that follows; 0 if not asked for. */
	__le32 attrs_len; /* Bytes of attributes. */
	__le32 paths; /* Number of names. */
	__le32 paths_len; /* Bytes of the names. */
	__le32 reserved; /* Zero. */
};
_Static_assert(sizeof(struct vexfs_record_head) == 32, "vexfs_record_head");

/* Which file's embedding, and to EMBED what it is to be. Sections: name, vector (dim f32). */
struct vexfs_embed {
	__le64 ino; /* Inode of the file, which must have a name in the directory; 0: by name. */
	__le32 name_len; /* Bytes of the name in the directory; 0: by inode. */
	__le32 dim; /* Elements of the vector; 0 to remove or get it. */
	__le32 flags; /* Bits of embed_flags. */
	__le32 reserved; /* Zero. */
	__le64 reserved2; /* Zero. */
};
_Static_assert(sizeof(struct vexfs_embed) == 32, "vexfs_embed");

/* Reply to GET_EMBEDDING. Section: vector (dim f32). */
struct vexfs_embedding_reply {
	__le64 ino; /* Inode of the file. */
	__le32 dim; /* Elements of the vector. */
	__le32 flags; /* STALE of record_flags. */
};
_Static_assert(sizeof(struct vexfs_embedding_reply) == 16, "vexfs_embedding_reply");

/* Collections under the directory. */
struct vexfs_collections {
	__le64 cursor; /* 0, then vexfs_collections_reply.cursor. */
	__le64 cursor2; /* 0, then vexfs_collections_reply.cursor2. */
	__le32 max; /* Most collections in the page; 0: as many as fit. */
	__le32 flags; /* Bits of collections_flags. */
	__le64 reserved; /* Zero. */
};
_Static_assert(sizeof(struct vexfs_collections) == 32, "vexfs_collections");

/*
 * Reply to COLLECTIONS. Then for each collection: vexfs_collection_info, a u32 length of its path and u32 zero,
 * the model name, the path (relative to the directory; empty for the directory itself). A page may be empty and
 * yet not be the last.
 */
struct vexfs_collections_reply {
	__le32 count; /* Number of collections. */
	__le32 more; /* 1: ask again with the cursor; 0: that was the last page. */
	__le64 cursor; /* Where the next page begins. */
	__le64 cursor2; /* Where the next page begins. */
	__le64 reserved; /* Zero. */
};
_Static_assert(sizeof(struct vexfs_collections_reply) == 32, "vexfs_collections_reply");

/* Reply to STATS. */
struct vexfs_stats_reply {
	__le64 uuid_lo; /* First 8 bytes of the volume's UUID, as a little-endian number. */
	__le64 uuid_hi; /* Last 8 bytes of the volume's UUID. */
	__le32 block_size; /* Bytes in a block. */
	__le32 read_only; /* 1: no changes. */
	__le64 blocks; /* Size of the volume in blocks. */
	__le64 free; /* Free blocks. */
	__le64 available; /* Free blocks that a caller may use. */
	__le64 inodes; /* Inodes in use. */
	__le64 generation; /* Checkpoint generation. */
	__le64 reserved; /* Zero, here and below. */
	__le64 reserved2; /* Zero. */
	__le64 reserved3; /* Zero. */
	__le64 reserved4; /* Zero. */
	__le64 reserved5; /* Zero. */
	__le64 reserved6; /* Zero. */
	__le64 reserved7; /* Zero. */
	__le64 reserved8; /* Zero. */
};
_Static_assert(sizeof(struct vexfs_stats_reply) == 128, "vexfs_stats_reply");

/*
 * One attribute: this head, the name, the value. A record's attributes are in ascending order of their names'
 * bytes, each name once, without padding; at most ATTRS_MAX bytes in all.
 */
struct vexfs_attr_head {
	__u8 name_len; /* Bytes of the name, 1 to 255. */
	__u8 ty; /* One of attr_type. */
	__le16 value_len; /* Bytes of the value: 8 for numbers, 1 for booleans. */
};
_Static_assert(sizeof(struct vexfs_attr_head) == 4, "vexfs_attr_head");

#endif
