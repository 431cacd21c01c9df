#!/bin/sh
# Run by MySQL's image when it starts for the first time: a database and a user for each
# of the three, who may do nothing outside it.
set -eu

for name in txcoord orders storages; do
  mysql -u root -p"$MYSQL_ROOT_PASSWORD" <<SQL
CREATE DATABASE $name CHARACTER SET utf8mb4;
CREATE USER '$name'@'%' IDENTIFIED BY '$DATABASE_PASSWORD';
GRANT ALL PRIVILEGES ON $name.* TO '$name'@'%';
SQL
done
