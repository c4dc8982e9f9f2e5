/* SPDX-License-Identifier: GPL-2.0-only */
/* Inline functions and macros of the kernel that Rust cannot call. Each is one line in helpers.c. */
#ifndef VEXFS_HELPERS_H
#define VEXFS_HELPERS_H

#include <linux/blkdev.h>
#include <linux/completion.h>
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/pagemap.h>
#include <linux/rwsem.h>
#include <linux/mutex.h>
#include <linux/kobject.h>
#include <linux/shrinker.h>
#include <linux/uio.h>
#include <linux/workqueue.h>
#include <linux/writeback.h>
#include <linux/posix_acl.h>
#include <linux/seq_file.h>
#include <linux/fs_parser.h>
#include <linux/mm.h>

/* Memory, processor, time. */
u64 vexfs_total_memory(void);
void *vexfs_alloc(size_t size, bool zero);
void vexfs_free(const void *p);
void *vexfs_kmemdup(const void *p, size_t len);
void vexfs_kfree(const void *p);
unsigned int vexfs_nofs_save(void);
void vexfs_nofs_restore(unsigned int flags);
void vexfs_fpu_begin(void);
void vexfs_fpu_end(void);
bool vexfs_may_avx2(void);
void vexfs_cond_resched(void);
unsigned long vexfs_jiffies(void);
unsigned long vexfs_msecs(unsigned int ms);
void vexfs_sleep_tick(void);
void vexfs_short_sleep(void);
void vexfs_rcu_barrier(void);
bool vexfs_copy_from_user(void *to, const void __user *from, size_t n);
bool vexfs_copy_to_user(void __user *to, const void *from, size_t n);
void vexfs_panic(const char *dev);
int vexfs_kobject_add(struct kobject *k, const struct kobj_type *t, struct kobject *parent, const char *name);
u64 vexfs_memory(void);
bool vexfs_fatal_signal(void);

/* Locks, workqueues. */
void vexfs_init_rwsem(struct rw_semaphore *s);
void vexfs_mutex_init(struct mutex *m);
void vexfs_mutex_init_inner(struct mutex *m);
void vexfs_mutex_lock(struct mutex *m);
bool vexfs_mutex_lock_killable(struct mutex *m);
void vexfs_mutex_unlock(struct mutex *m);
void vexfs_init_completion(struct completion *c);
void vexfs_init_work(struct work_struct *w, work_func_t f);
void vexfs_init_delayed_work(struct delayed_work *w, work_func_t f);
void vexfs_queue_work(struct workqueue_struct *q, struct work_struct *w);
void vexfs_mod_delayed(struct workqueue_struct *q, struct delayed_work *w, unsigned long delay);
struct workqueue_struct *vexfs_workqueue(const char *name, bool fast);

/* Block layer. */
struct bio *vexfs_bio_alloc(struct block_device *b, unsigned short vecs, blk_opf_t opf, struct bio_set *s);
struct page *vexfs_page(const void *p);
u64 vexfs_bdev_bytes(struct block_device *b);
bool vexfs_bdev_discard(struct block_device *b);
unsigned int vexfs_bdev_logical(struct block_device *b);
void vexfs_invalidate_bdev(struct block_device *b);

struct shrinker *vexfs_shrinker(const char *name);
bool vexfs_may_fs(struct shrink_control *sc);
unsigned long vexfs_shrink_stop(void);

/* Superblocks and mounting. */
struct kmem_cache *vexfs_inode_cache(unsigned int size, void (*ctor)(void *));
void *vexfs_alloc_inode(struct super_block *sb, struct kmem_cache *c);
bool vexfs_sb_rdonly(struct super_block *sb);
void vexfs_sb_force_rdonly(struct super_block *sb);
void vexfs_seq_puts(struct seq_file *m, const char *s);
void vexfs_seq_number(struct seq_file *m, const char *name, u64 n);
void vexfs_sync_inodes(struct super_block *sb);
void vexfs_start_intwrite(struct super_block *sb);
void vexfs_end_intwrite(struct super_block *sb);
void vexfs_set_uuid(struct super_block *sb, const u8 *uuid);
struct super_block *vexfs_file_sb(struct file *f);
const char *vexfs_sb_id(struct super_block *sb);

/* Inodes and names. */
bool vexfs_inode_is_new(struct inode *i);
void vexfs_set_ids(struct inode *i, u32 uid, u32 gid);
void vexfs_ids(struct inode *i, u32 *uid, u32 *gid);
u32 vexfs_vfsuid(struct inode *i, struct iattr *a);
u32 vexfs_vfsgid(struct inode *i, struct iattr *a);
void vexfs_times(struct inode *i, struct timespec64 *a, struct timespec64 *m, struct timespec64 *c);
void vexfs_set_atime(struct inode *i, s64 s, u32 ns);
void vexfs_set_mtime(struct inode *i, s64 s, u32 ns);
void vexfs_set_ctime(struct inode *i, s64 s, u32 ns);
s64 vexfs_i_size(struct inode *i);
void vexfs_i_size_write(struct inode *i, s64 size);
void vexfs_inode_lock(struct inode *i);
void vexfs_inode_unlock(struct inode *i);
void vexfs_inode_lock_shared(struct inode *i);
void vexfs_inode_unlock_shared(struct inode *i);
void vexfs_mark_dirty_sync(struct inode *i);
void vexfs_file_accessed(struct file *f);
void vexfs_init_special(struct inode *i, u32 mode, u32 dev);
u32 vexfs_encode_dev(dev_t d);
bool vexfs_dir_emit(struct dir_context *c, const char *name, int len, u64 ino, unsigned int type);
bool vexfs_dir_emit_dots(struct file *f, struct dir_context *c);
bool vexfs_is_dirsync(struct inode *i);
u32 vexfs_fsuid(void);
u32 vexfs_fsgid(void);
void vexfs_file_ids(struct file *f, u32 *uid, u32 *gid);
u32 vexfs_file_groups(struct file *f, u32 *out, u32 room);
void vexfs_acl_release(struct posix_acl *a);
struct dentry *vexfs_file_dentry(struct file *f);
int vexfs_finish_open(struct file *f, int error);
struct inode *vexfs_file_inode(struct file *f);
unsigned int vexfs_umask(void);

/* Page cache. */
void vexfs_large_folios(struct inode *i);
size_t vexfs_folio_most(struct inode *i);
void vexfs_mapping_error(struct inode *i, int e);
void vexfs_invalidate_lock(struct inode *i);
void vexfs_invalidate_unlock(struct inode *i);
s64 vexfs_folio_pos(struct folio *f);
size_t vexfs_folio_size(struct folio *f);
void *vexfs_folio_data(struct folio *f);
void vexfs_folio_unlock(struct folio *f);
void vexfs_folio_put(struct folio *f);
bool vexfs_folio_uptodate(struct folio *f);
void vexfs_folio_set_uptodate(struct folio *f);
bool vexfs_folio_dirty(struct folio *f);
void vexfs_folio_wait_writeback(struct folio *f);
void vexfs_folio_start_writeback(struct folio *f);
bool vexfs_folio_private(struct folio *f);
void vexfs_folio_attach(struct folio *f);
void vexfs_folio_detach(struct folio *f);
struct inode *vexfs_folio_inode(struct folio *f);
struct folio *vexfs_lock_folio(struct inode *i, s64 pos);
struct folio *vexfs_begin_folio(struct inode *i, s64 pos, size_t len);
void vexfs_flush_dcache(struct folio *f);
size_t vexfs_copy_from_iter_atomic(struct folio *f, size_t at, size_t n, struct iov_iter *it);
struct folio *vexfs_readahead_folio(struct readahead_control *r);
struct inode *vexfs_readahead_inode(struct readahead_control *r);
size_t vexfs_iter_count(struct iov_iter *it);
size_t vexfs_copy_from_iter(void *to, size_t n, struct iov_iter *it);
size_t vexfs_copy_to_iter(const void *from, size_t n, struct iov_iter *it);
ssize_t vexfs_write_sync(struct kiocb *k, ssize_t n);
void vexfs_start_pagefault(struct super_block *sb);
void vexfs_end_pagefault(struct super_block *sb);
bool vexfs_folio_lock(struct folio *f, struct inode *i);
struct file *vexfs_vmf_file(struct vm_fault *v);
bool vexfs_vmf_folio(struct vm_fault *v, struct folio **f);

#endif
