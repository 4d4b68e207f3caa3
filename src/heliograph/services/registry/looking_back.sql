-- Labels, and the past of one config.

-- name: version_by_label
select v.*, o.body as message_text from registry.label l
  join registry.head h on h.namespace = l.namespace and h.environment = l.environment
  join registry.version v on v.namespace = l.namespace and v.environment = l.environment and v.number = l.number
  left join registry.object o on o.namespace = v.namespace and o.digest = v.message and not o.purged
 where l.namespace = $1 and l.environment = $2 and l.name = $3;

-- name: version_at
select v.*, o.body as message_text from registry.version v
  left join registry.object o on o.namespace = v.namespace and o.digest = v.message and not o.purged
 where v.namespace = $1 and v.environment = $2 and v.number = registry.number_at($1, $2, $3);

-- name: set_label
select * from registry.set_label($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: remove_label
select * from registry.remove_label($1, $2, $3, $4, $5);

-- name: labels
select name, number, version, set_by, set_at from registry.label
 where namespace = $1 and environment = $2 and name > $3 order by name limit $4;

-- name: label
select name, number, version, set_by, set_at from registry.label where namespace = $1 and environment = $2 and name = $3;

-- name: labels_of
select number, name from registry.label where namespace = $1 and environment = $2 and number = any($3::bigint[]) order by number, name;

-- name: changes_of
-- Newest first, from the one before $4 on.
select v.number, v.id, v.epoch, v.root, v.record, o.body as message_text
  from registry.change c
  join registry.version v on v.namespace = c.namespace and v.environment = c.environment and v.number = c.number
  left join registry.object o on o.namespace = v.namespace and o.digest = v.message and not o.purged
 where c.namespace = $1 and c.environment = $2 and c.name = $3 and c.number < $4 order by c.number desc limit $5;

-- name: which_purged
select digest from registry.object where namespace = $1 and digest = any($2::bytea[]) and purged;
