/* SPDX-License-Identifier: GPL-2.0-only */
/* What bindgen reads: the kernel's headers that the module needs, and constants that are casts or sums there. */
#include <linux/backing-dev.h>
#include <linux/blkdev.h>
#include <linux/completion.h>
#include <linux/cred.h>
#include <linux/exportfs.h>
#include <linux/fiemap.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/fs_context.h>
#include <linux/fs_parser.h>
#include <linux/iversion.h>
#include <linux/kobject.h>
#include <linux/mm.h>
#include <linux/mount.h>
#include <linux/mutex.h>
#include <linux/pagemap.h>
#include <linux/posix_acl.h>
#include <linux/posix_acl_xattr.h>
#include <linux/rwsem.h>
#include <linux/seq_file.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/splice.h>
#include <linux/statfs.h>
#include <linux/sysfs.h>
#include <linux/timekeeping.h>
#include <linux/uio.h>
#include <linux/workqueue.h>
#include <linux/writeback.h>
#include <linux/xattr.h>
#include "helpers.h"

const blk_opf_t VEXFS_REQ_READ = REQ_OP_READ;
const blk_opf_t VEXFS_REQ_WRITE = REQ_OP_WRITE | REQ_SYNC | REQ_IDLE;
const blk_opf_t VEXFS_REQ_WRITE_DURABLE = REQ_OP_WRITE | REQ_SYNC | REQ_IDLE | REQ_FUA;
const blk_opf_t VEXFS_REQ_FLUSH = REQ_OP_WRITE | REQ_SYNC | REQ_IDLE | REQ_PREFLUSH;
const blk_opf_t VEXFS_REQ_DISCARD = REQ_OP_DISCARD;
const fmode_t VEXFS_FMODE_CAN_ODIRECT = FMODE_CAN_ODIRECT;
const unsigned long VEXFS_SB_RDONLY = SB_RDONLY;
const unsigned long VEXFS_SB_POSIXACL = SB_POSIXACL;
const unsigned long VEXFS_SB_NOSEC = SB_NOSEC;
const unsigned int VEXFS_VM_FAULT_LOCKED = VM_FAULT_LOCKED;
const unsigned int VEXFS_VM_FAULT_NOPAGE = VM_FAULT_NOPAGE;
const unsigned int VEXFS_VM_FAULT_SIGBUS = VM_FAULT_SIGBUS;
const int VEXFS_IOCB_DIRECT = IOCB_DIRECT;
const unsigned int VEXFS_FITRIM = FITRIM;
const unsigned int VEXFS_IOC_SHUTDOWN = _IOR('X', 125, __u32);
