-- The event table: the outbox for Kafka and, without Kafka, the log itself.
--
-- A position is taken under its shard's lock row and the row is held until the commit is durable, so positions are gapless, become visible in order, and
-- "position > cursor" is a correct read. Lock order everywhere: head row, then shard row, and the shard last.
create schema eventlog authorization heliograph_owner;
set local role heliograph_owner;

create table eventlog.event_shard (
  shard         int primary key,
  next_position bigint not null default 1
) with (fillfactor = 10);
insert into eventlog.event_shard (shard) select generate_series(0, 15);

create table eventlog.event (
  shard        int not null,
  position     bigint not null,
  timeline     int not null,
  key          text not null,
  body         bytea not null,
  trace        text,
  committed_at timestamptz not null,
  primary key (shard, position, committed_at)
) partition by range (committed_at);
create table eventlog.event_default partition of eventlog.event default;

-- Receipts and connection records: appended in batches by sync nodes. Positions work the same way.
create table eventlog.log_receipt_shard (
  shard         int primary key,
  next_position bigint not null default 1
) with (fillfactor = 10);
insert into eventlog.log_receipt_shard (shard) select generate_series(0, 15);

create table eventlog.log_receipt (
  shard        int not null,
  position     bigint not null,
  timeline     int not null,
  key          text not null,
  body         bytea not null,
  trace        text,
  committed_at timestamptz not null,
  primary key (shard, position, committed_at)
) partition by range (committed_at);
create table eventlog.log_receipt_default partition of eventlog.log_receipt default;

-- Where Kafka is known to have a shard's events up to, for a partition that retention or a new topic has emptied.
create table eventlog.checkpoint (
  shard    int primary key,
  topic    text not null,           -- the topic's id: another one means another log
  timeline int not null,
  position bigint not null,
  at       timestamptz not null default now()
);

create table eventlog.dead_letter (
  id          bigint generated always as identity primary key,
  stream      text not null check (stream in ('versions', 'receipts', 'deliveries')),
  consumer    text not null,
  shard       int,
  position    bigint,
  key         text not null,
  body        bytea not null,
  reason      text not null,
  attempts    int not null,
  trace       text,
  created_at  timestamptz not null default now(),
  state       text not null default 'waiting' check (state in ('waiting', 'replayed', 'discarded')),
  settled_at  timestamptz,
  settled_by  text,
  unique (stream, consumer, shard, position)
);

-- 1 on a server that was never promoted. Positions of a lost tail may be used again on a higher timeline; readers follow (timeline, position).
create function eventlog.current_timeline() returns int language sql volatile as $$
  select ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int
$$;

-- Appends one event in the caller's transaction. Takes the shard's lock: call it last.
create function eventlog.append_event(p_shard int, p_key text, p_body bytea, p_trace text)
returns table (o_position bigint, o_timeline int, o_committed_at timestamptz)
language plpgsql security definer set search_path = '' as $$
begin
  update eventlog.event_shard s set next_position = s.next_position + 1 where s.shard = p_shard returning s.next_position - 1 into o_position;
  if o_position is null then
    raise exception 'no such shard: %', p_shard using errcode = 'check_violation';
  end if;
  o_timeline := eventlog.current_timeline();
  o_committed_at := clock_timestamp();
  insert into eventlog.event (shard, position, timeline, key, body, trace, committed_at)
  values (p_shard, o_position, o_timeline, p_key, p_body, p_trace, o_committed_at);
  return next;
end $$;

-- Appends a batch of receipts, shard by shard in ascending order so that two batches cannot wait for each other in a circle.
create function eventlog.append_receipts(p_shards int[], p_keys text[], p_bodies bytea[], p_traces text[])
returns void language plpgsql security definer set search_path = '' as $$
declare
  v_shard int;
  v_first bigint;
  v_count int;
begin
  for v_shard, v_count in select s, count(*)::int from unnest(p_shards) s group by s order by s loop
    update eventlog.log_receipt_shard r set next_position = r.next_position + v_count where r.shard = v_shard
      returning r.next_position - v_count into v_first;
    if v_first is null then
      raise exception 'no such shard: %', v_shard using errcode = 'check_violation';
    end if;
    insert into eventlog.log_receipt (shard, position, timeline, key, body, trace, committed_at)
    select v_shard, v_first + row_number() over (order by i.n) - 1, eventlog.current_timeline(), i.key, i.body, i.trace, clock_timestamp()
    from unnest(p_shards, p_keys, p_bodies, p_traces) with ordinality i (shard, key, body, trace, n)
    where i.shard = v_shard;
  end loop;
end $$;

-- Nobody rewrites the log; only whole partitions leave it.
create function eventlog.refuse_change() returns trigger language plpgsql as $$
begin
  raise exception 'the event log is append-only' using errcode = 'insufficient_privilege';
end $$;
create trigger event_is_append_only before update or delete or truncate on eventlog.event
  for each statement execute function eventlog.refuse_change();
create trigger log_receipt_is_append_only before update or delete or truncate on eventlog.log_receipt
  for each statement execute function eventlog.refuse_change();

-- Partitions: one a day, made ahead; a row that finds none goes to the default partition, and that day keeps using it.
create function eventlog.make_partitions(p_days_ahead int) returns int
language plpgsql security definer set search_path = '' as $$
declare
  v_table text;
  v_day   date;
  v_rows  boolean;
  v_made  int := 0;
begin
  foreach v_table in array array['event', 'log_receipt'] loop
    for v_day in select (now() at time zone 'UTC')::date + d from generate_series(0, p_days_ahead) d loop
      continue when to_regclass(format('eventlog.%I', v_table || to_char(v_day, '_YYYYMMDD'))) is not null;
      execute format('select exists (select from eventlog.%I where committed_at >= %L and committed_at < %L)',
        v_table || '_default', v_day::timestamp at time zone 'UTC', (v_day + 1)::timestamp at time zone 'UTC') into v_rows;
      continue when v_rows;
      execute format('create table eventlog.%I partition of eventlog.%I for values from (%L) to (%L)',
        v_table || to_char(v_day, '_YYYYMMDD'), v_table, v_day::timestamp at time zone 'UTC', (v_day + 1)::timestamp at time zone 'UTC');
      execute format('create trigger %I before update or delete or truncate on eventlog.%I for each statement execute function eventlog.refuse_change()',
        v_table || '_is_append_only', v_table || to_char(v_day, '_YYYYMMDD'));
      v_made := v_made + 1;
    end loop;
  end loop;
  return v_made;
end $$;

-- Drops whole days older than p_keep_days; of events only what Kafka has, when there is a Kafka (p_relayed: the checkpoint must have passed).
create function eventlog.drop_partitions(p_table text, p_keep_days int, p_relayed boolean) returns int
language plpgsql security definer set search_path = '' as $$
declare
  v_name    text;
  v_waiting boolean := false;
  v_dropped int := 0;
begin
  if p_table not in ('event', 'log_receipt') then
    raise exception 'not a log table: %', p_table using errcode = 'check_violation';
  end if;
  for v_name in
    select c.relname from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
    where i.inhparent = format('eventlog.%I', p_table)::regclass and c.relname ~ '_\d{8}$'
      and to_date(right(c.relname, 8), 'YYYYMMDD') < (now() at time zone 'UTC')::date - p_keep_days
    order by c.relname
  loop
    if p_relayed then
      execute format('select exists (select from eventlog.%I e left join eventlog.checkpoint c using (shard) where e.position > coalesce(c.position, 0))',
        v_name) into v_waiting;
    end if;
    exit when v_waiting;
    execute format('drop table eventlog.%I', v_name);
    v_dropped := v_dropped + 1;
  end loop;
  return v_dropped;
end $$;

create trigger event_default_is_append_only before update or delete or truncate on eventlog.event_default
  for each statement execute function eventlog.refuse_change();
create trigger log_receipt_default_is_append_only before update or delete or truncate on eventlog.log_receipt_default
  for each statement execute function eventlog.refuse_change();

revoke execute on all functions in schema eventlog from public;
grant usage on schema eventlog to heliograph_registry, heliograph_relay, heliograph_sync, heliograph_ledger;
grant execute on function eventlog.append_event(int, text, bytea, text) to heliograph_registry;
grant execute on function eventlog.append_receipts(int[], text[], bytea[], text[]) to heliograph_sync;
grant execute on function eventlog.make_partitions(int), eventlog.drop_partitions(text, int, boolean) to heliograph_relay, heliograph_registry;
grant execute on function eventlog.current_timeline() to heliograph_registry, heliograph_relay, heliograph_sync, heliograph_ledger;
grant select on eventlog.event, eventlog.event_shard to heliograph_registry, heliograph_relay, heliograph_sync, heliograph_ledger;
grant select on eventlog.log_receipt, eventlog.log_receipt_shard to heliograph_sync, heliograph_ledger;
grant select, insert, update on eventlog.checkpoint to heliograph_relay;
grant select, insert, update on eventlog.dead_letter to heliograph_registry, heliograph_sync, heliograph_ledger, heliograph_relay;
reset role;
select eventlog.make_partitions(7);
