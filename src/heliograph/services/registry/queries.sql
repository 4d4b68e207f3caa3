-- Every statement of the registry, by name. Digests are 32 raw bytes, times ending in _us microseconds since 1970.

-- name: head
select namespace, environment, epoch, number, version, root, peaks, at_us, configs, safe, issued_at_us, expires_at_us, payload, signatures
  from registry.head where namespace = $1 and environment = $2;

-- name: held_head
-- The same, held until the end of the transaction.
select namespace, environment, epoch, number, version, root, peaks, at_us, configs, safe, issued_at_us, expires_at_us, payload, signatures
  from registry.head where namespace = $1 and environment = $2 for update;

-- name: heads
-- One page of all heads with their versions, for readers that start.
select h.namespace, h.environment, h.payload, h.signatures, v.record, v.record_signatures
  from registry.head h join registry.version v on v.id = h.version
 where (h.namespace, h.environment) > ($1, $2) order by h.namespace, h.environment limit $3;

-- name: heads_to_renew
-- Oldest first. A scan of the small table: an index on the time would forbid updating rows in place.
select namespace, environment, epoch, number, version, root, peaks, at_us, configs, safe, issued_at_us, expires_at_us, payload, signatures
  from registry.head where issued_at_us < $1 order by issued_at_us limit $2;

-- name: oldest_head
select min(issued_at_us) from registry.head;

-- name: commit
-- See the function: everything or nothing, one round trip.
select outcome, status, answer from registry.commit_version(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29,
    $30, $31, $32, $33, $34, $35);

-- name: commit_with_lineage
-- The same for a version whose content came from another: branched, promoted, rolled back.
select outcome, status, answer from registry.commit_with_lineage(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29,
    $30, $31, $32, $33, $34, $35, $36, $37, $38, $39);

-- name: note_lineage
select registry.note_lineage($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: sources_of
select source_environment, source_number, source_at, selectors from registry.sources_of($1, $2, $3);

-- name: points
-- Versions of any environments of a namespace: when they were committed, and their content.
select v.environment, v.number, v.root, v.committed_at from unnest($2::text[], $3::bigint[]) as p (environment, number)
  join registry.version v on v.namespace = $1 and v.environment = p.environment and v.number = p.number;

-- name: renew
select registry.renew_head($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- name: answered
select request, status, answer from registry.idempotency where principal = $1 and key = $2;

-- name: remember
insert into registry.idempotency (principal, key, request, status, answer) values ($1, $2, $3, $4, $5) on conflict do nothing;

-- name: forget_answers
-- A bounded number at a time, so that no lock is held for long.
delete from registry.idempotency where (principal, key) in
    (select principal, key from registry.idempotency where created_at < now() - make_interval(secs => $1) order by created_at limit $2) returning 1;

-- name: objects
select digest, body from registry.object where namespace = $1 and digest = any($2::bytea[]) and not purged;

-- name: weigh
-- How much text, how many of them are there, and whether one was purged, or is about to be.
select coalesce(sum(length(body)), 0)::bigint as bytes, count(*) as found,
       coalesce(bool_or(purged), false) or registry.is_purged($1, $2) as purged
  from registry.object where namespace = $1 and digest = any($2::bytea[]);

-- name: purged_any
select exists (select from registry.object where namespace = $1 and purged);

-- name: version_by_number
select v.*, o.body as message_text from registry.version v
  left join registry.object o on o.namespace = v.namespace and o.digest = v.message and not o.purged
 where v.namespace = $1 and v.environment = $2 and v.number = $3
   and exists (select from registry.head h where h.namespace = v.namespace and h.environment = v.environment);

-- name: version_by_id
select v.*, o.body as message_text from registry.version v
  left join registry.object o on o.namespace = v.namespace and o.digest = v.message and not o.purged
 where v.namespace = $1 and v.environment = $2 and v.id = $3
   and exists (select from registry.head h where h.namespace = v.namespace and h.environment = v.environment);

-- name: versions_before
-- Newest first.
select v.number, v.id, v.epoch, v.root, v.record, v.record_signatures, v.head, v.head_signatures, v.message, v.names[1:$5] as names,
       cardinality(v.names) as changed, v.configs, v.received_at_us, v.trace, v.committed_at, o.body as message_text
  from registry.version v left join registry.object o on o.namespace = v.namespace and o.digest = v.message and not o.purged
 where v.namespace = $1 and v.environment = $2 and v.number < $3 order by v.number desc limit $4;

-- name: records_after
-- Oldest first, as signed: what an auditor needs.
select number, record, record_signatures from registry.version
 where namespace = $1 and environment = $2 and number > $3 order by number limit $4;

-- name: ids_after
select number, id from registry.version where namespace = $1 and environment = $2 and number > $3 order by number limit $4;

-- name: create_namespace
-- Makes a namespace and notes it. No row: it is there already.
with made as (insert into registry.namespace (name, created_by) values ($1, $2) on conflict do nothing returning name, created_at),
     noted as (insert into registry.audit (namespace, actor, action) select name, $2, 'namespace.create' from made)
select name, created_at from made;

-- name: namespaces
select name, created_at from registry.namespace n where name > $1
   and not exists (select from registry.deleted_namespace d where d.name = n.name) order by name limit $2;

-- name: namespace_exists
select exists (select from registry.namespace where name = $1) and not exists (select from registry.deleted_namespace where name = $1);

-- name: environments
select environment, epoch, number, version, configs, at_us from registry.head
 where namespace = $1 and environment > $2 order by environment limit $3;

-- name: policy
select compatibility from registry.policy where namespace = $1 and environment = $2;

-- name: set_policy
insert into registry.policy (namespace, environment, compatibility, changed_by) values ($1, $2, $3, $4)
on conflict (namespace, environment) do update
   set compatibility = excluded.compatibility, changed_by = excluded.changed_by, changed_at = now();

-- name: note
insert into registry.audit (namespace, environment, actor, action, detail) values ($1, $2, $3, $4, $5::jsonb) returning id;

-- name: audit_before
-- Newest first.
select id, at, namespace, environment, actor, action, detail::text as detail from registry.audit
 where namespace = $1 and environment = $2 and id < $3 order by id desc limit $4;

-- name: audit_of_namespace_before
-- What was done to the namespace itself, newest first.
select id, at, namespace, environment, actor, action, detail::text as detail from registry.audit
 where namespace = $1 and environment is null and id < $2 order by id desc limit $3;

-- name: append_event
select o_position from eventlog.append_event($1, $2, $3, $4);

-- name: history_exists
select exists (select from registry.head) or exists (select from registry.deleted_environment);

-- name: make_partitions
select eventlog.make_partitions($1);

-- name: drop_partitions
select eventlog.drop_partitions('event', $1, $2) + eventlog.drop_partitions('log_receipt', $1, false);

-- name: lead_upkeep
-- One registry renews heads; the lock lives as long as the connection that asks.
select pg_try_advisory_lock(hashtext('heliograph.registry.upkeep'));
