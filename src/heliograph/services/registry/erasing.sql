-- Deletion with a way back, erasing for good, and purge.

-- name: deleted_environment
select deleted_at, erase_at from registry.deleted_environment where namespace = $1 and environment = $2 and not erasing;

-- name: was_erased
select exists (select from registry.audit where namespace = $1 and environment = $2 and action = 'environment.erase');

-- name: deletion_of_environment
select environment, (head ->> 'epoch')::bigint as epoch, number, version, configs, (head ->> 'at_us')::bigint as at_us, deleted_by, deleted_at, erase_at
  from registry.deleted_environment where namespace = $1 and environment = $2;

-- name: deletions_of_environments
select environment, (head ->> 'epoch')::bigint as epoch, number, version, configs, (head ->> 'at_us')::bigint as at_us, deleted_by, deleted_at, erase_at
  from registry.deleted_environment where namespace = $1 and environment > $2 order by environment limit $3;

-- name: deletion_of_namespace
select d.name, n.created_at, d.deleted_by, d.deleted_at, d.erase_at
  from registry.deleted_namespace d join registry.namespace n using (name) where d.name = $1;

-- name: deletions_of_namespaces
select d.name, n.created_at, d.deleted_by, d.deleted_at, d.erase_at
  from registry.deleted_namespace d join registry.namespace n using (name) where d.name > $1 order by d.name limit $2;

-- name: namespace_made
select created_at from registry.namespace where name = $1;

-- name: environments_of
select environment from registry.head where namespace = $1 order by environment limit $2;

-- name: delete_environments
select registry.delete_environments($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: restore_environments
select registry.restore_environments($1, $2, $3);

-- name: restored_untold
-- There again by the very head they were deleted with. $2 null: in the whole namespace.
select environment from registry.head join registry.restored using (namespace, environment, issued_at_us)
 where namespace = $1 and ($2::text is null or environment = $2) order by environment;

-- name: erase_some
select * from registry.erase_some($1);

-- name: erase_namespace
select registry.erase_namespace();

-- name: collection
-- The oldest, but for those that cannot go on.
select namespace, stale from registry.collection where namespace <> all($1::text[]) order by asked_at limit 1;

-- name: begin_collection
select registry.begin_collection($1, $2);

-- name: mark_versions
select registry.mark_versions($1, $2);

-- name: open_marks
-- No body: it is not there.
select m.digest, o.kind::text as kind, o.body from registry.mark m
  left join registry.object o on o.namespace = m.namespace and o.digest = m.digest
 where m.namespace = $1 and m.open limit $2;

-- name: mark_objects
select registry.mark_objects($1, $2, $3, $4);

-- name: sweep_some
select * from registry.sweep_some($1, $2);

-- name: lead_erasing
-- One registry erases; the lock lives as long as the connection that asks.
select pg_try_advisory_lock(hashtext('heliograph.registry.erasing'));

-- name: kept_environments
-- Whose heads may still be read or restored.
select environment, root, exists (select from registry.head h where h.namespace = k.namespace and h.environment = k.environment) as live
  from registry.kept_environment k where namespace = $1 order by environment;

-- name: kinds
select digest, kind::text as kind, purged from registry.object where namespace = $1 and digest = any($2::bytea[]);

-- name: ask_purge
select registry.ask_purge($1, $2, $3);

-- name: cancel_purge
select registry.cancel_purge($1, $2, $3);

-- name: purge_objects
select registry.purge_objects($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13);

-- name: purges_before
-- Newest first.
select id, at, purged_by, reason, order_text, digests, statement, signatures from registry.purge
 where namespace = $1 and id < $2 order by id desc limit $3;

-- name: purged_lately
-- By time and not by number: purges may become visible in another order than they were numbered in.
select digest from registry.purged where purge is not null and at > now() - make_interval(secs => $1);

-- name: letters_with
-- Dead letters that hold a digest, and so perhaps the text.
select count(*) from eventlog.dead_letter
 where exists (select from unnest($1::text[]) d where position(convert_to(d, 'UTF8') in body) > 0);
